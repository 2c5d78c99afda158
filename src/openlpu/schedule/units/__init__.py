"""One file per functional unit: vector operations in, instructions at cycles out."""
