// Package appliance puts the appliance together: the data folder, the catalog, the pools, the certificate authority, the job engine, the two
// doors (unix socket and port), and the Service behind the API.
//
// It owns the data folder: the lock that keeps a second daemon out, the socket, pools.json (a copy of where the pools are, so that a lost
// catalog can be rebuilt without remembering), and the folders catalog, ca and state (what pools may lose). Starting after a crash asks
// each pool about the sets that were being committed or deleted, marks runs as interrupted, and reads nothing else: it is ready in seconds.
package appliance
