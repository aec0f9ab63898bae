"""A folder of scans: jobs, processes, Ray clusters, the journal by which a run goes on."""
