from lorebase.transfer.upgrade.settings import MAX_RETRY_GROWTH, retry_growth


def test_every_retry_doubles_inputs_and_steps_up_to_a_bound() -> None:
    assert [retry_growth(attempt) for attempt in (1, 2, 3, 4, 5, 10)] == [1, 2, 4, 8, 8, 8]
    assert MAX_RETRY_GROWTH == 8
