"""Answer with a distilled version outside bonbon, with transformers and peft alone.

    bonbon distill --model path/of/base --reward path/of/reward --prompts prompts.txt --out distilled
    python examples/serve_elsewhere.py path/of/base distilled/output "My lamp arrived broken. Can you help?"

The adapter may also come from `bonbon models export NAME --out DIR`. For a version that needs more than one draw (its k
is above one), draw so many here and let your reward choose: docs/serve_elsewhere.md has that, and other servers.
"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(base: str, adapter: str, question: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    # As bonbon draws: from the model's own distribution, with none of the sampling defaults of its files.
    drawn = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=256)
    print(tokenizer.decode(drawn[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
