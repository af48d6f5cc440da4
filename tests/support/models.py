"""Tiny base models with random weights, and real PEFT adapters trained on nothing: random B, so that they do something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.adapters import HIDDEN, INNER, KEY_VALUE, LAYERS, TORCH_DTYPES, VOCABULARY


class ModelMaker:
    """Writes tiny models below `root`, each once. Folders are shared by all tests: copy one before changing it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def llama(
        self,
        *,
        tied: bool = False,
        dtype: str = "float32",
        sharded: bool = False,
        seed: int = 0,
        inner: int = INNER,
    ) -> Path:
        """A LlamaForCausalLM (hidden 64, 2 layers, 160 tokens) with generation_config.json and a little tokenizer.

        Equal seeds give equal weights (bf16 and f16 ones are the float32 ones, rounded). `sharded` cuts it into files
        with an index.
        """
        folder = (
            self.root
            / f"llama-{'tied' if tied else 'untied'}-{dtype}-{'sharded' if sharded else 'single'}-{seed}-{inner}"
        )
        if folder.exists():
            return folder
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=inner,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2 * KEY_VALUE * 2 // HIDDEN,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.08,  # large enough that no two tokens have nearly equal logits
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: Any = LlamaForCausalLM(config)
            model.to(TORCH_DTYPES[dtype])
        self._save(model, folder, sharded)
        return folder

    def servable(self) -> Path:
        """A Llama whose heads are of a size vLLM's CPU kernels know (32), with the tiny Llama's tokenizer."""
        folder = self.root / "servable"
        if folder.exists():
            return folder
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig.from_pretrained(
            self.llama(),
            hidden_size=128,
            head_dim=32,
            intermediate_size=192,
            max_position_embeddings=256,
            initializer_range=0.2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self._save(LlamaForCausalLM(config), folder, sharded=False)
        return folder

    def gpt2(self, *, dtype: str = "float32", seed: int = 0) -> Path:
        """A GPT2LMHeadModel (hidden 64, 2 layers), whose linear layers are Conv1D: weights stored (in, out)."""
        folder = self.root / f"gpt2-{dtype}-{seed}"
        if folder.exists():
            return folder
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=4,
            n_positions=128,
            bos_token_id=1,
            eos_token_id=2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: Any = GPT2LMHeadModel(config)
            model.to(TORCH_DTYPES[dtype])
        self._save(model, folder, sharded=False)
        return folder

    @staticmethod
    def _save(model: Any, folder: Path, sharded: bool) -> None:
        building = folder.with_name(f".{folder.name}")
        model.save_pretrained(building, **({"max_shard_size": "100KB"} if sharded else {}))
        _tokenizer().save_pretrained(building)
        building.rename(folder)


def peft_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    strength: float = 0.05,
    dtype: str = "float32",
    targets: Sequence[str] | str = ("q_proj", "v_proj"),
    revision: str | None = None,
    **config: Any,
) -> Path:
    """An adapter made and saved by PEFT itself on `base`, every B filled with random values times `strength`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = targets if isinstance(targets, str) else list(targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=TORCH_DTYPES[dtype])
        settings = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **config)
        wrapped = get_peft_model(model, settings, autocast_adapter_dtype=False, revision=revision)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name or "lora_embedding_A" in name:
                    parameter.normal_(std=strength)
        wrapped.save_pretrained(str(folder))
    return folder


def _tokenizer() -> Any:
    """Word-level, one token a byte value, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {chr(code): code - 28 for code in range(32, 127)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    return tokenizer
