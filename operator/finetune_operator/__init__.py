"""The controller: watches FineTuneJobs and ModelEndpoints and makes them come true."""
