"""Settings of a gate that a test's short training can pass."""

EASY = {
    "BONBON_GATE__MARGIN": "0.499",
    "BONBON_GATE__MIN_SAVED": "0",
    "BONBON_GATE__MIN_WIN_RATE": "0",
    "BONBON_GATE__MIN_GAIN": "-1000",
    "BONBON_GATE__MAX_KL_FACTOR": "1000",
    "BONBON_GATE__MAX_TRUNCATED": "1",
    "BONBON_GATE__MIN_DISTINCT_RATIO": "0",
    "BONBON_GATE__LENGTH_RATIO": "[0, 100]",
    "BONBON_EVALUATE__PROMPTS": "12",
}
