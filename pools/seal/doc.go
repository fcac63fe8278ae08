// Package seal encrypts what pools keep: the payloads of containers, small whole objects, and the keys for both.
// docs/design/0004-encryption.md argues the design; docs/formats/keys.md has the bytes.
//
// A pool has a keyring: one object whose outside anybody can check for damage and whose inside (the bag) opens with any one of several
// secrets: a key file, a passphrase, the recovery key of a printed sheet. The bag holds the data keys, one an epoch, and the key of the
// chunks' names. Nothing here touches files, clocks or pools: the package turns bytes into bytes, so there is nothing that a crash could
// leave half done. It imports the ground floor only, and is the only home of argon2.
package seal
