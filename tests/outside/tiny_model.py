"""Makes models of a few hundred thousand random weights, so that a real engine can be run without downloading any.

    python tests/outside/tiny_model.py chat|embed|audio FOLDER

Needs torch and transformers, which come with vLLM. What such a model says is noise, but its tokens, reasons to stop,
usage and events are the engine's own, and with a temperature of 0 they are the same each time.
"""

import argparse

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "hello, what is the weather in Paris and in Rome?",
    'one two three {"place": "Paris"} user assistant system tool',
    "0 1 2 3 4 5 6 7 8 9",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
WHISPER = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]


def letters(special):
    """Every byte is a token, so that every text can be said; and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def text_model(kind):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters(["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]),
        pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    shape = {**SMALL, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "embed":
        return transformers.BertModel(transformers.BertConfig(**shape)), tokenizer
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **shape, **ends)
    return transformers.LlamaForCausalLM(config), tokenizer


def audio_model():
    tokenizer = letters([])
    tokenizer.add_special_tokens(WHISPER + [f"<|{n * 0.02:.2f}|>" for n in range(1501)])
    end, start = (tokenizer.token_to_id(name) for name in WHISPER[:2])
    words = transformers.WhisperTokenizerFast(
        tokenizer_object=tokenizer, **dict.fromkeys(["bos_token", "eos_token", "unk_token", "pad_token"], WHISPER[0])
    )
    config = transformers.WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=1500, max_target_positions=448, decoder_start_token_id=start,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, suppress_tokens=[], begin_suppress_tokens=[],
    )
    model = transformers.WhisperForConditionalGeneration(config)
    return model, transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), words)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("kind", choices=["chat", "embed", "audio"])
    arguments.add_argument("folder")
    arguments = arguments.parse_args()
    torch.manual_seed(0)
    model, words = audio_model() if arguments.kind == "audio" else text_model(arguments.kind)
    model.to(torch.float32).save_pretrained(arguments.folder)
    words.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
