"""The online half: an OpenAI-compatible service that answers with the best of n and swaps in what was distilled."""
