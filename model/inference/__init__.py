"""Pictures and words -> masks."""
