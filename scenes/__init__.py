"""Generated pictures with exact truth: a subject, its pixel-exact mask, its kind and its colour.

    from scenes import make_scene
    scene = make_scene(seed=7)                 # scene.image, scene.mask, scene.kind, scene.colour

The same seed makes the same scene. They train and measure the bundled models, and are the sample photos.
"""

from scenes.scene import COLOURS, KINDS, Scene, make_scene

__all__ = ["COLOURS", "KINDS", "Scene", "make_scene"]
