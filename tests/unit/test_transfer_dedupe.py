from lorebase.transfer.synthesis import DuplicateIndex
from lorebase.transfer.synthesis.dedupe import normalise


def test_case_and_spaces_make_no_new_input() -> None:
    index = DuplicateIndex(["The  door is OPEN"])
    assert not index.add("the door is open ")
    assert normalise(" A \n b\t") == "a b"


def test_short_inputs_that_differ_in_one_field_are_different() -> None:
    index = DuplicateIndex()
    assert index.add("Contract signed on 2019-03-04")
    assert index.add("Contract signed on 2019-03-05")
    assert index.add("turn on the fan in the attic")
    assert index.add("turn on the fan in the cellar")


def test_long_inputs_with_a_slip_are_near_duplicates() -> None:
    long = "A customer writes that the parcel which was promised for Monday never came. " * 3
    index = DuplicateIndex()
    assert index.add(long)
    assert not index.add(long.replace("parcel", "parcels", 1))
    assert index.add(long.replace("customer writes", "neighbour complains"))


def test_long_inputs_with_other_numbers_are_different() -> None:
    text = "Anna has {} apples and gives two of them to Ben, who had none before. " * 3
    index = DuplicateIndex()
    assert index.add(text.format(3, 3, 3))
    assert index.add(text.format(4, 4, 4))
    assert not index.add(text.format(4, 4, 4))
