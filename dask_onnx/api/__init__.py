"""What users hold: `load`, `Model`, `Plan`, `TextModel`. Thin verbs over the layers below."""
