// Package api is the appliance's door for people and programs: REST under /v1 with an OpenAPI 3.1 description made from the Go
// types here, events over SSE, Prometheus metrics, and the JSON calls of the agents.
//
// It owns routes, their access rules (one table, everything not listed is for administrators), the form of errors and the JSON
// types, which are stable within a major version. It decides nothing: each handler calls one method of the Service, which the
// assembly implements. It keeps nothing, so a crash costs it nothing. It must not import pool drivers.
package api
