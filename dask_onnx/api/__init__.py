"""Public objects: `load`, `Model`, `Plan`, `TextModel`, `verify_axes`; verbs over lower layers."""
