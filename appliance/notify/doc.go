// Package notify tells people and their systems what happened: it takes the house's events and brings each to the targets whose rules
// match it: mail, webhook, ntfy, gotify and syslog.
//
// An event may raise or clear an alarm (Raise, Clear). However often an alarm is raised, each target is told once, and once when it is
// cleared, if it was told of the alarm. Other events go out once each. A target that gets too much at once gets one summary instead
// (flood control); one that wants a digest gets what is no alarm once a day. What cannot be delivered waits in a bounded queue and is tried again.
//
// Promise on a crash: what Accept returned nil for is in the Store, and so are the alarms, the queues, the digests and the number of the
// last event; a Notifier made over the same Store goes on from there. Between a target's acceptance of a message and the record of it lies a
// moment: after a crash in it the message is sent again, with the same id (Message-ID, X-Holdfast-Delivery) for the other end to know it by.
// Nothing is lost in silence: what is dropped because a queue is full is counted in a summary, what was given up shows in Status and as an event.
//
// Secrets are of type Secret and print as ***. The package must not import anything of the house but the ground floor and the clock;
// github.com/wneessen/go-mail has its home here.
package notify
