"""From files in object storage to tables of documents and rejected rows; one module per format."""
