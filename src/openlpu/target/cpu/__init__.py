"""Integer graph -> LLVM IR text -> a native step on the processor at hand."""
