"""The machine as facts: TruePoint arithmetic, the instruction table, chips as data, closed-form costs."""
