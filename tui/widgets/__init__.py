"""The parts of the screens. Each draws values it is given and says what the user did; none reads the store."""
