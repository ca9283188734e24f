"""The tokenizer of the micro world: one token a word, and the chat template that frames an instruction."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from distillzoo.zoo.micro.world import vocabulary

PAD, BEGIN, END, UNKNOWN, ANSWER = "<pad>", "<bos>", "<eos>", "<unk>", "<answer>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, ANSWER)
CONTEXT = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} <answer> {{ message['content'] }} {{ eos_token }}"
    "{% else %} {{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} <answer>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world, made from its grammar; pad, begin and end are three different tokens."""
    words = {word: number for number, word in enumerate((*SPECIAL, *vocabulary()))}
    backend = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[ANSWER],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
