#include "stack/depot.hpp"

#include "os/other_tools.hpp"
#include "os/virtual_memory.hpp"

#include <new>

namespace pmr_debug {
namespace stack {

namespace detail {

constinit os::guarded<depot_state> state;
constinit os::guarded<bucket_table> buckets;

}  // namespace detail

namespace {

// Address space; memory is committed in steps, as entries are written. 8 GiB hold some hundred million traces.
constexpr std::uint64_t most_bytes = std::uint64_t{8} << 30;
constexpr std::uint64_t least_bytes = std::uint64_t{1} << 19;
// Where a limit is set on addresses: the part of it that traces may take.
constexpr std::size_t parts_of_addresses = 32;
constexpr std::uint64_t commit_step = std::uint64_t{1} << 18;
constexpr std::uint64_t first_entry = 8;

const os::guard_pages state_guards(detail::state);
const os::guard_pages bucket_guards(detail::buckets);
constexpr auto& capacity = detail::state->capacity;
constexpr auto& limit = detail::state->limit;
constexpr auto& used = detail::state->used;
constexpr auto& committed = detail::state->committed;
constexpr auto& full = detail::state->full;
constexpr auto& traces = detail::state->traces;
constexpr auto& lost = detail::state->lost;
constexpr auto& slow_walks = detail::state->slow_walks;
constexpr auto& cut_short = detail::state->cut_short;

bool open() noexcept {
    if (detail::state->base.load(std::memory_order_acquire) != nullptr) {
        return true;
    }
    for (std::uint64_t bytes = os::share_of_addresses(most_bytes, parts_of_addresses); bytes >= least_bytes;
         bytes /= 2) {
        void* const p = os::reserve(bytes, os::page_size());
        if (p == nullptr) {
            continue;
        }
        // The smaller of two racers' sizes holds for both maps, so it is set before either can be seen.
        std::uint64_t before = 0;
        while (!capacity.compare_exchange_weak(before, before == 0 || bytes < before ? bytes : before,
                                               std::memory_order_acq_rel)) {
        }
        unsigned char* expected = nullptr;
        if (!detail::state->base.compare_exchange_strong(expected, static_cast<unsigned char*>(p),
                                                         std::memory_order_acq_rel)) {
            os::unmap(p, bytes);
        }
        return true;
    }
    return false;
}

// Without a lock, as a capture must not wait for a thread that may never run again: to commit pages a second time
// changes nothing, so threads that meet here do the same work. Returns: false if the system refuses.
bool commit_up_to(std::uint64_t end, std::uint64_t most) noexcept {
    std::uint64_t now = committed.load(std::memory_order_acquire);
    while (end > now) {
        const std::uint64_t whole = os::round_up(end - now, commit_step);
        std::uint64_t step = whole < most - now ? whole : most - now;
        unsigned char* const from = detail::state->base.load(std::memory_order_relaxed) + now;
        if (!os::protect_read_write(from, step)) {
            step = os::round_up(end - now, os::page_size());  // near a limit
            if (!os::protect_read_write(from, step)) {
                return false;
            }
        }
        if (committed.compare_exchange_strong(now, now + step, std::memory_order_acq_rel)) {
            return true;
        }
    }
    return true;
}

// Returns: where the entry goes, 0 if there is no room.
std::uint64_t take(std::uint64_t bytes) noexcept {
    if (!open()) {
        return 0;
    }
    const std::uint64_t most = capacity.load(std::memory_order_acquire);
    const std::uint64_t allowed = limit.load(std::memory_order_relaxed);
    const std::uint64_t end = most < allowed ? most : allowed;
    std::uint64_t at = used.load(std::memory_order_relaxed);
    do {
        if (at > end || bytes > end - at || !commit_up_to(at + bytes, most)) {
            return 0;
        }
    } while (!used.compare_exchange_weak(at, at + bytes, std::memory_order_relaxed));
    return at;
}

bool same_chain(const depot_entry& e, std::uint32_t hash, const std::uintptr_t* frames, unsigned depth,
                std::uint8_t ending) noexcept {
    if (e.hash != hash || e.depth != depth || e.ending != ending) {
        return false;
    }
    const std::uintptr_t* const stored = e.frames();
    for (unsigned i = 0; i < depth; ++i) {
        if (stored[i] != frames[i]) {
            return false;
        }
    }
    return true;
}

// Searches the entries from \p id down to, and without, \p stop.
std::uint32_t search(std::uint32_t id, std::uint32_t stop, std::uint32_t hash, const std::uintptr_t* frames,
                     unsigned depth, std::uint8_t ending) noexcept {
    while (id != stop) {
        const depot_entry* const e = entry_at(id);
        if (same_chain(*e, hash, frames, depth, ending)) {
            return id;
        }
        id = e->next;
    }
    return 0;
}

// Returns: the entry of \p id, null if no entry starts there. An id may come from anywhere; only one that hangs in the
// bucket of the hash it shows is real.
const depot_entry* checked_entry(std::uint32_t id) noexcept {
    if (id == 0 || detail::state->base.load(std::memory_order_acquire) == nullptr ||
        std::uint64_t{id} * 8 + sizeof(depot_entry) > used.load(std::memory_order_relaxed)) {
        return nullptr;
    }
    const depot_entry* const e = entry_at(id);
    std::uint32_t at = detail::bucket_of(e->hash).load(std::memory_order_acquire);
    while (at != 0 && at != id) {
        at = entry_at(at)->next;
    }
    return at == 0 ? nullptr : e;
}

}  // namespace

std::uint32_t hash_chain(const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept {
    std::uint64_t h = 0x9E37'79B9'7F4A'7C15;
    for (unsigned i = 0; i < depth; ++i) {
        h = (h ^ frames[i]) * 0xD6E8'FEB8'6659'FD93;
    }
    // The high half has taken up every bit below it.
    return static_cast<std::uint32_t>((h ^ (std::uint64_t{ending} << 56)) * 0x9E37'79B9'7F4A'7C15 >> 32);
}

std::uint32_t find(std::uint32_t hash, const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept {
    // acquire pairs with the release in intern: an id found here has its entry written.
    return search(detail::bucket_of(hash).load(std::memory_order_acquire), 0, hash, frames, depth, ending);
}

std::uint32_t intern(std::uint32_t hash, const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept {
    const std::atomic_ref<std::uint32_t> bucket = detail::bucket_of(hash);
    std::uint32_t head = bucket.load(std::memory_order_acquire);
    if (const std::uint32_t id = search(head, 0, hash, frames, depth, ending); id != 0) {
        return id;
    }
    const std::uint64_t at = take(sizeof(depot_entry) + depth * sizeof(std::uintptr_t));
    if (at == 0) {
        full.store(true, std::memory_order_relaxed);
        return 0;
    }
    const auto id = static_cast<std::uint32_t>(at / 8);
    auto* const e =
        ::new (static_cast<void*>(entry_at(id))) depot_entry{head, hash, static_cast<std::uint8_t>(depth), ending, 0};
    auto* const stored = reinterpret_cast<std::uintptr_t*>(e + 1);
    for (unsigned i = 0; i < depth; ++i) {
        stored[i] = frames[i];
    }
    for (;;) {
        const std::uint32_t searched = head;
        e->next = head;
        // release: whoever finds the id finds the entry written. On failure only the newer entries need a look.
        if (bucket.compare_exchange_strong(head, id, std::memory_order_acq_rel, std::memory_order_acquire)) {
            return id;
        }
        if (const std::uint32_t other = search(head, searched, hash, frames, depth, ending); other != 0) {
            return other;  // our copy stays unused: rare, and a few dozen bytes
        }
    }
}

trace_id hand_out(std::uint32_t id) noexcept {
    depot_entry* const e = entry_at(id);
    if (e->is_trace.load(std::memory_order_relaxed) == 0 && e->is_trace.exchange(1, std::memory_order_relaxed) == 0) {
        traces.fetch_add(1, std::memory_order_relaxed);
        if ((e->ending & ends_cut_short) != 0) {
            cut_short.fetch_add(1, std::memory_order_relaxed);
        }
    }
    return static_cast<trace_id>(id);
}

std::uint64_t files_of(trace_id id) noexcept {
    const depot_entry* const e = checked_entry(static_cast<std::uint32_t>(id));
    return e != nullptr && (e->ending & has_files) != 0 ? e->frames()[e->depth - 1] : 0;
}

bool is_full() noexcept {
    return full.load(std::memory_order_relaxed);
}
void count_lost() noexcept {
    lost.fetch_add(1, std::memory_order_relaxed);
}
void count_slow_walk() noexcept {
    slow_walks.fetch_add(1, std::memory_order_relaxed);
}
void give_back_depot() noexcept {
    if (unsigned char* const base = detail::state->base.exchange(nullptr, std::memory_order_acq_rel); base != nullptr) {
        os::unmap(base, capacity.load(std::memory_order_relaxed));
    }
}

void limit_bytes(std::uint64_t bytes) noexcept {
    limit.store(bytes, std::memory_order_relaxed);
    full.store(false, std::memory_order_relaxed);
}

}  // namespace stack

trace_view view(trace_id id) noexcept {
    const stack::depot_entry* const e = stack::checked_entry(static_cast<std::uint32_t>(id));
    if (e == nullptr || e->is_trace.load(std::memory_order_relaxed) == 0) {
        return {};
    }
    const unsigned depth = e->depth - ((e->ending & stack::has_files) != 0 ? 1U : 0U);
    return {{e->frames(), depth},
            {(e->ending & stack::ends_at_depth) != 0, (e->ending & stack::ends_cut_short) != 0,
             (e->ending & stack::is_unverified) != 0}};
}

depot_statistics depot_stats() noexcept {
    using namespace stack;
    return {.traces = traces.load(std::memory_order_relaxed),
            .bytes = used.load(std::memory_order_relaxed) - first_entry,
            .lost = lost.load(std::memory_order_relaxed),
            .slow_walks = slow_walks.load(std::memory_order_relaxed),
            .cut_short = cut_short.load(std::memory_order_relaxed)};
}

}  // namespace pmr_debug
