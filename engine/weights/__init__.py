"""Models on disk: bundles, their exports, downloads. Refuses to know images."""
