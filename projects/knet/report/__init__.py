"""An evaluation as one HTML page that needs no server: tables, confusions, pictures."""
