// Package observe shows what a [wireguard.Device] does. Explain gives the state of a peer, and the reasons for it. Log writes
// events to a slog.Logger, and Var publishes counters through package expvar.
//
//	why, _ := observe.Explain(device, peer) // "No answer to 3 initiations. The peer was last heard at 12:00:05. ..."
//	go observe.Log(ctx, device, slog.Default())
//	expvar.Publish("wireguard", observe.Var{Device: device})
//
// Package observe/page has a page for browsers.
//
// Package observe/capture writes packets and keys for Wireshark.
//
// Package observe/prom has a collector for Prometheus. Only programs that import it link Prometheus's library.
//
// Except for captures, these packages only read the status of the device and its peers, and subscribe to events. They do no work
// per packet, and store no secret.
package observe
