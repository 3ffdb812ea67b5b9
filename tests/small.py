"""Settings that train in a second, for tests that need a real training."""

from tevq import presets

TINY = {
    "precision": "float32", "data.train": 60, "data.val": 10, "data.test": 10,
    "classifier.width": 4, "classifier.steps": 4, "classifier.batch": 16,
    "stage1.channels": 4, "stage1.codes": 12, "stage1.code_dim": 12, "stage1.warmup_steps": 2,
    "stage1.steps": 6, "stage1.batch": 4, "stage1.disc_start": 3, "stage1.disc_channels": 4,
    "stage1.disc_layers": 1, "stage1.stride": 8,
    "stage2.dim": 16, "stage2.depth": 1, "stage2.heads": 2, "stage2.head_dim": 8,
    "stage2.steps": 6, "stage2.batch": 4, "stage2.warmup_steps": 2, "stage2.probe_every": 3,
    "stage2.probe_scenes": 10, "evaluation.batch": 4,
}
FEATURES = 400  # for stage1.KMEANS_VECTORS


def tiny(variant="te", seed=0, **overrides):
    """Preset smoke, made tiny; overrides as `**{"stage1.steps": 9}`."""
    return presets.load("smoke", variant, seed, TINY | overrides)
