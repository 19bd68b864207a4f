"""What a run will do and need, worked out before it is started: see `docs/planning.md`.

`findings` what is wrong or could not be looked at · `hub` what is available without a network · `rows` the first rows of the
data · `checks` the data, the tokenizer and the teacher against each other · `placement` how a run is spread over devices ·
`model` the model on the meta device · `activations`, `lm_head`, `optimizer`, `memory` what stands in a device's memory ·
`phases` steps and tokens · `disk` what is written · `report` all of it as text and as JSON.
"""
