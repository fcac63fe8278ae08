// Package ingest is the appliance's end of the data's way: it takes backup sets from agents into pools, gives them back for restores, and keeps
// catalog and pools in step.
//
// It owns the session of a task over a wire.Link, the verification of every group that arrives, the commit protocol (intent in the catalog, commit in
// the pool, record in the catalog), deletion, and what is done about intents and tombstones after a crash. Who may do what is
// decided by the Desk, which the appliance implements.
//
// Promise on a crash: a set that was acknowledged is in pool and catalog; a set that was not is either there whole after Recover, or not at all.
//
// It must not import drivers, nor anything of the appliance or the agent.
package ingest
