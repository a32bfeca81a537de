"""The program under several versions of transformers, in environments of their own."""
