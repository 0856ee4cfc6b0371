from lorebase.transfer.kit import DOCUMENT, PAPER
from lorebase.transfer.ports import Example

SEEDS = (Example(input="a", target="1"), Example(input="b", target="2"))


def test_document_prompt_and_answer_join_to_one_example_of_a_document() -> None:
    assert DOCUMENT.prompt("x") + DOCUMENT.answer("y") == "Input: x\nOutput: y\n"
    assert DOCUMENT.answer("y").endswith(DOCUMENT.stop)


def test_few_shot_puts_solved_seeds_before_the_prompt() -> None:
    assert DOCUMENT.few_shot(SEEDS, "c") == (
        "Input: a\nOutput: 1\n\nInput: b\nOutput: 2\n\nInput: c\nOutput:"
    )
    assert DOCUMENT.few_shot((), "c") == DOCUMENT.prompt("c")


def test_document_synthesis_prompt_ends_where_a_new_input_begins() -> None:
    prompt = DOCUMENT.synthesis_prompt(SEEDS)
    assert prompt == "Input: a\nOutput: 1\n\nInput: b\nOutput: 2\n\nInput:"
    assert DOCUMENT.synthesis_stop(2) == "\nOutput"


def test_paper_synthesis_numbers_the_seeds_and_stops_before_the_next_number() -> None:
    prompt = PAPER.synthesis_prompt(SEEDS)
    assert prompt == "Here are 10 examples:\n1. a\n2. b\n3."
    assert PAPER.synthesis_stop(2) == "\n4."


def test_paper_discriminator_prompt_names_the_dataset() -> None:
    assert PAPER.discriminator_prompt("Why?", "GSM8K") == (
        "Answer in as few words as possible. Why? Is the above question from the GSM8K dataset?"
    )


def test_braces_in_a_clients_text_are_no_fields() -> None:
    assert DOCUMENT.prompt("{target} {x} {}") == "Input: {target} {x} {}\nOutput:"
    seed = Example(input="{index}", target="{input}")
    assert DOCUMENT.synthesis_prompt([seed]).startswith("Input: {index}\nOutput: {input}\n")
