// Package job runs backups and restores: it turns a request into a run of tasks, hands the tasks to the agents, follows their reports,
// and decides how the run ended.
//
// It also says what a job is: a Definition with its Source, schedules and Tuning, and the pure Plan that decides from a definition, a State and a
// moment whether a run is due, missed or to wait. A job's run has stages: precondition, pre-script, VMs, post-script (stage.go).
//
// It owns the run records of the catalog, the task streams of the agents and with them who is Online. A run's state changes are durable
// before they are shown; progress is kept in memory only. After a crash, Recover marks the runs that were under way as failed: what they had
// committed stays, and asking again goes on from there. It must not import the API or auth.
//
// Locking: one mutex, Engine.mu, for everything in memory. It is never held while the catalog, an agent or a channel is waited for, except
// that Engine.persist takes Engine.writes first: a run's records reach the catalog in the order of its changes.
package job
