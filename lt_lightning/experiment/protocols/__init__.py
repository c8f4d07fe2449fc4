"""Controls, bisection, screening, transfer, stability: what may be asked for beside a search and its tickets."""
