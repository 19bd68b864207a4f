"""A student made of a model's own layers, evenly spaced, first and last included.

    python examples/fewer_layers.py HuggingFaceTB/SmolLM2-135M 10 students/smollm2-10-layers

Embeddings, norms and LM head are the model's, so the tokenizer is too. Fresh from here the student says little: train it.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_exbias.methods.dad_dagger.students import keep_layers


if __name__ == "__main__":
    name, count, folder = sys.argv[1:]
    keep_layers(AutoModelForCausalLM.from_pretrained(name), int(count)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    print(f"{count} layers of {name}: {folder}")
