"""What the images are scored with: pure functions in `functional`, metrics over them, judges and feature extractors.

**A metric of your own** is a `torchmetrics.Metric` in a package that `DIFFLENS_ALLOW_TARGETS` names, and an entry of a file
that begins with `defaults: [default, _self_]` in your `conf/metric/`:

    measures:
      brightness: {_target_: mine.Brightness, label: brightness, digits: 2, better: 0, meaning: mean of all pixels}

Its constructor gets what else the entry has. `update` is called for some images at a time, of the same N in all of them, and
gets those of the following that its signature names:

    images         [N, 3, H, W], floats in [0, 1]
    originals      the same ids without mitigation, like `images`
    probabilities  attribute → the scoring judge's softmax [N, C]; a row of NaN where it found no face
    features       of the extractor [N, dim]
    embeddings     of the extractor [N, embed]
    prompts        the prompt of each image
    edited         which images the mitigation acted on [N]

`compute` gives one number. A set of images that lacks what an argument without a default asks for (the unmitigated images
have no `originals`, models without prompts no `prompts`) has none. The number stands under the entry's key in `metrics.json`,
and in all reports, tables and plots with what the entry says of it.
"""
