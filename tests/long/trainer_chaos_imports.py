"""Imports the trainer's modules, for a process that trainers are forked from."""

import aiosqlite
import peft
import torch
import transformers

import trainer.evaluation.evaluate
import trainer.loop
import trainer.training.train

__all__ = ["aiosqlite", "peft", "torch", "trainer", "transformers"]
