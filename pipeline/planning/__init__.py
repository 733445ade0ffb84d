"""What `hornbook plan` computes: costs, advice, a measured step. Imports no lightning but to measure."""
