import torch
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.scored import score_labels

from ..layouts import collator, random_examples
from ..tiny import tiny_model


def test_scoring_labels_alone_gives_what_scoring_every_position_gives():
    """Log-probabilities, entropy, the most probable token and the gradients; also of a batch without labels."""
    model = tiny_model("gemma2")
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    batch = collator(shared=False).collate(random_examples(3))
    inputs = {name: batch[name] for name in ("input_ids", "shift_labels", "attention_mask")}
    for labels in (batch["shift_labels"], torch.full_like(batch["shift_labels"], -100)):
        found, gradients = [], []
        for is_compiled in (True, False):
            output = score_labels(model, model, {**inputs, "shift_labels": labels}, is_compiled)
            model.zero_grad()
            output.log_probs.sum().backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
            found.append(output)
        for name in ("log_probs", "entropy", "is_top1"):
            torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=0)
        assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()
    assert not model.model._forward_hooks
