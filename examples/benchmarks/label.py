"""`label` against one plain forward over the same tokens."""

import torch

from trl_exbias.rollouts import TransformersEngine

from .common import alternate, chat_rows, load_model, report


def main(repeats: int = 3, num_rows: int = 16) -> None:
    """16 rows: contexts and continuations in, argmaxes out; the forward makes the whole logits, as a model does."""
    model, tokenizer = load_model()
    model.eval()
    contexts, continuations, source = chat_rows(num_rows, tokenizer)
    engine = TransformersEngine(model, tokenizer.pad_token_id)
    sequences = [[*context, *rest] for context, rest in zip(contexts, continuations, strict=True)]
    width = max(map(len, sequences))
    input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])

    @torch.no_grad()
    def forward():
        return model(input_ids=input_ids, attention_mask=attention_mask)

    seconds = alternate({"label": lambda: engine.label(contexts, continuations), "forward": forward}, repeats)
    report(
        "label ÷ one plain forward over the same tokens",
        seconds["label"] / seconds["forward"],
        "≤ 1.2",
        f"{seconds['label']:.2f} s ÷ {seconds['forward']:.2f} s, {num_rows} rows of {source}",
    )


if __name__ == "__main__":
    main()
