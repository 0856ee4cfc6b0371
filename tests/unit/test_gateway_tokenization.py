"""Prompts of chats: the base's template where there is one, a plain rendering elsewhere."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError
from lorebase.serving.gateway.calls import Message
from lorebase.serving.gateway.tokenization import BaseTokenizers, plain_chat

USER = Message(role="user", content="a b")


def write_base(folder: Path, template: str | None = None, tokenizer: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    config: dict[str, object] = {"bos_token": {"content": "<s>"}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if not tokenizer:
        return
    words = {word: index for index, word in enumerate(["<s>", "a", "b", "user", "?"])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(folder / "tokenizer.json"))


def tokenizers(folder: Path) -> BaseTokenizers:
    return BaseTokenizers(lambda base_id: folder)


def test_single_user_message_is_the_prompt_itself() -> None:
    assert plain_chat((Message(role="user", content="Input: x\nOutput:"),)) == "Input: x\nOutput:"


def test_longer_chats_become_lines() -> None:
    chat = (
        Message(role="system", content="be brief"),
        Message(role="user", content="hi"),
        Message(role="assistant", content="ho"),
        Message(role="user", content="he"),
    )
    assert plain_chat(chat) == "System: be brief\nUser: hi\nAssistant: ho\nUser: he\nAssistant:"


async def test_base_without_template_gets_plain_text(tmp_path: Path) -> None:
    write_base(tmp_path)
    assert await tokenizers(tmp_path).render_chat("b", (USER,)) == "a b"


async def test_template_is_rendered_to_tokens_without_a_second_bos(tmp_path: Path) -> None:
    write_base(
        tmp_path,
        "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} ?{% endif %}",
    )
    assert await tokenizers(tmp_path).render_chat("b", (USER,)) == (0, 3, 1, 2, 4)


async def test_template_file_wins_over_the_configs(tmp_path: Path) -> None:
    write_base(tmp_path, "b")
    (tmp_path / "chat_template.jinja").write_text("a")
    assert await tokenizers(tmp_path).render_chat("b", (USER,)) == (1,)


async def test_refusal_by_the_template_is_the_clients_error(tmp_path: Path) -> None:
    write_base(tmp_path, "{{ raise_exception('only users') }}")
    with pytest.raises(InvalidArgumentError, match="only users"):
        await tokenizers(tmp_path).render_chat("b", (USER,))


async def test_template_can_not_reach_into_python(tmp_path: Path) -> None:
    write_base(tmp_path, "{{ messages.__class__.__mro__ }}")
    with pytest.raises(InvalidArgumentError):
        await tokenizers(tmp_path).render_chat("b", (USER,))


async def test_codec_adds_special_tokens_to_prompts_and_drops_them_from_text(
    tmp_path: Path,
) -> None:
    write_base(tmp_path)
    codec = await tokenizers(tmp_path).codec("b")
    assert codec.encode("a b") == (0, 1, 2)
    assert codec.decode((0, 1, 2)) == "a b"


async def test_base_without_tokenizer_file_says_so(tmp_path: Path) -> None:
    write_base(tmp_path, tokenizer=False)
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json"):
        await tokenizers(tmp_path).codec("b")
