"""Train on logged preferences with TRL instead of bonbon's own trainer.

    bonbon pairs export --format parquet pairs.parquet
    pip install trl
    python examples/trl_dpo.py pairs.parquet path/of/base dpo

The columns `prompt`, `chosen` and `rejected` are lists of messages: TRL's conversational format of preferences. The
other columns (rewards, log-probabilities, token ids) are left out here, since TRL does not read them.
"""

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer


def main(pairs: str, base: str, out: str) -> None:
    dataset = load_dataset("parquet", data_files=pairs, split="train").select_columns(["prompt", "chosen", "rejected"])
    trainer = DPOTrainer(
        model=base,
        args=DPOConfig(output_dir=out, num_train_epochs=1, learning_rate=1e-4, report_to="none", bf16=False),
        train_dataset=dataset,
        peft_config=LoraConfig(task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    print(f"adapter of {len(dataset)} preferences: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
