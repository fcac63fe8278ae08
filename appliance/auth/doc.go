// Package auth decides who may come in: the appliance's own certificate authority, the certificates of the server and of the
// agents, one-time access keys, and the principal that the two doors (API and data) put into a request's context.
//
// It owns the folder it is opened on (the CA's key and the list of revoked hosts). Both files are replaced whole and synced
// before a call returns, so a crash leaves the old or the new state. They live outside the catalog on purpose: a catalog that is
// rebuilt from its pools must neither lock the agents out nor let a revoked one in.
//
// It knows nothing of pools, jobs and HTTP; inner packages never check roles. It must not import catalog or ingest.
package auth
