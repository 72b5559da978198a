"""CoDe: segmenters, prompts, losses."""
