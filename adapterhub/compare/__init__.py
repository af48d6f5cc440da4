"""What `diff` shows: how two adapters relate, before they are merged. numpy only, exact, in factored form."""
