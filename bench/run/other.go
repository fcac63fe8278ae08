//go:build !linux

// Command run is the bench; it runs on Linux only.
package main

func main() { panic("the bench runs on Linux only") }
