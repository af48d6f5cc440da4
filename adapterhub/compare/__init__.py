"""What `diff` shows: how adapters relate, before they are merged. numpy only, in factored form, never a dense delta."""
