#include "metadata/registry.hpp"

#include "metadata/address_map.hpp"
#include "metadata/arena.hpp"
#include "metadata/remains.hpp"
#include "os/fault_signals.hpp"
#include "os/guarded.hpp"
#include "os/thread.hpp"

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <mutex>
#include <new>
#include <utility>

namespace pmr_debug::metadata {

namespace {

// Records are made in blocks, which are never freed, so that a pointer to one stays readable.
constexpr std::size_t block_records = 64;

struct list {
    resource_record* first = nullptr;
    resource_record* last = nullptr;
    std::size_t size = 0;
};

using link = resource_record* resource_record::*;

// The last N of something. Its memory is taken at first use.
template <class Entry, std::size_t N>
class ring {
public:
    void push(const Entry& e) noexcept {
        if (entries_ == nullptr) {
            arena* const memory = process_arena();
            entries_ = memory != nullptr ? static_cast<Entry*>(memory->allocate(sizeof(Entry) * N)) : nullptr;
        }
        if (entries_ != nullptr) {
            ::new (entries_ + pushed_++ % N) Entry(e);
        }
    }
    /// Returns: the entry pushed last of those that \p fits, or null.
    template <class Fits>
    [[nodiscard]] const Entry* find(Fits fits) const noexcept {
        const std::size_t oldest = pushed_ > N ? pushed_ - N : 0;
        for (std::size_t i = pushed_; i > oldest; --i) {
            const Entry& e = entries_[(i - 1) % N];
            if (fits(e)) {
                return &e;
            }
        }
        return nullptr;
    }

private:
    Entry* entries_ = nullptr;
    std::size_t pushed_ = 0;
};

// Of a resource that is dead, unless its record is used again under another id.
struct left {
    const resource_record* owner;
    std::uint64_t id;
    std::uint64_t death;  // counted

    [[nodiscard]] bool known() const noexcept {
        return owner->id == id && !owner->alive.load(std::memory_order_relaxed);
    }
};
struct left_block : left {
    owned_block what;
    // Of a tracking resource: the same block as its upstream knew it then, or a resource below that.
    std::uint64_t upstream_id = 0;
    std::uint64_t upstream_serial = 0;
};
struct left_range : left {
    std::uintptr_t from;
    std::size_t bytes;
};

struct registry_state {
    os::spin_lock guard;
    std::uint64_t last_id = 0;
    list all;                           // by construction, linked by older and newer
    list living;                        // by construction, linked by before and after
    list dead;                          // by death, linked by before and after
    resource_record* unused = nullptr;  // linked by after
    std::uint64_t deaths = 0;
    ring<left_block, left_blocks_kept> left_blocks;
    ring<left_range, left_ranges_kept> left_ranges;
};
constinit os::guarded<registry_state> state;
const os::guard_pages state_guards(state);
constexpr auto& guard = state->guard;
constexpr auto& last_id = state->last_id;
constexpr auto& all = state->all;
constexpr auto& living = state->living;
constexpr auto& dead = state->dead;
constexpr auto& unused = state->unused;
constexpr auto& deaths = state->deaths;
constexpr auto& left_blocks = state->left_blocks;
constexpr auto& left_ranges = state->left_ranges;

template <link Before, link After>
void append(list& l, resource_record* r) noexcept {
    r->*Before = l.last;
    r->*After = nullptr;
    (l.last != nullptr ? l.last->*After : l.first) = r;
    l.last = r;
    ++l.size;
}

template <link Before, link After>
void unlink(list& l, resource_record* r) noexcept {
    (r->*Before != nullptr ? (r->*Before)->*After : l.first) = r->*After;
    (r->*After != nullptr ? (r->*After)->*Before : l.last) = r->*Before;
    --l.size;
}

constexpr auto append_all = append<&resource_record::older, &resource_record::newer>;
constexpr auto unlink_all = unlink<&resource_record::older, &resource_record::newer>;
constexpr auto append_half = append<&resource_record::before, &resource_record::after>;
constexpr auto unlink_half = unlink<&resource_record::before, &resource_record::after>;

resource_record* take_oldest_dead() noexcept {
    resource_record* const r = dead.first;
    if (r != nullptr) {
        unlink_half(dead, r);
        unlink_all(all, r);
    }
    return r;
}

resource_record* take_record() noexcept {
    if (dead.size >= dead_records_kept) {
        return take_oldest_dead();
    }
    if (unused == nullptr) {
        arena* const memory = process_arena();
        void* const p = memory != nullptr ? memory->allocate(sizeof(resource_record) * block_records) : nullptr;
        if (p == nullptr) {
            return take_oldest_dead();
        }
        auto* const records = static_cast<resource_record*>(p);
        for (std::size_t i = 0; i < block_records; ++i) {
            resource_record* const r = ::new (records + i) resource_record;
            r->after = unused;
            unused = r;
        }
    }
    resource_record* const r = unused;
    unused = r->after;
    return r;
}

void copy_name(resource_record& r, std::string_view name) noexcept {
    constexpr std::string_view cut = "…";
    constexpr std::size_t room = sizeof r.name - 1;
    const std::size_t until_nul = name.find('\0');
    const bool whole = until_nul == std::string_view::npos && name.size() <= room;
    std::size_t kept = until_nul < name.size() ? until_nul : name.size();
    if (!whole && kept > room - cut.size()) {
        kept = room - cut.size();
        // Not within a character.
        while (kept != 0 && (static_cast<unsigned char>(name[kept]) & 0xC0U) == 0x80) {
            --kept;
        }
    }
    if (kept != 0) {
        std::memcpy(r.name, name.data(), kept);
    }
    if (!whole) {
        std::memcpy(r.name + kept, cut.data(), cut.size());
        kept += cut.size();
    }
    r.name[kept] = '\0';
}

// With the lock held.
resource_record* find_living(const void* address) noexcept {
    for (resource_record* r = living.last; r != nullptr; r = r->before) {
        if (r->address == address) {
            return r;
        }
    }
    return nullptr;
}

// With the lock held.
/// Calls \p visit(address, record or null) for \p from and what is below it, until that returns true.
template <class Visit>
bool go_down_held(const void* from, Visit&& visit) noexcept {
    // No chain is longer than there are resources, unless it is a circle.
    for (std::size_t steps = 0; from != nullptr && steps <= living.size; ++steps) {
        const resource_record* const r = find_living(from);
        if (visit(from, r)) {
            return true;
        }
        from = r != nullptr ? r->upstream : nullptr;
    }
    return false;
}

bool leads_to_held(const void* from, const void* address) noexcept {
    return go_down_held(from, [&](const void* at, const resource_record*) noexcept { return at == address; });
}

// With the lock held. True if a living resource has a block or pages here that did not come from below \p gone: the
// memory was handed out anew. Only these may be asked for while other threads use the resource.
bool handed_out_anew(const void* p, const resource_record& gone) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    for (resource_record* r = living.last; r != nullptr; r = r->before) {
        owned_block theirs;
        const bool has_it = (r->core != nullptr && address_map::find(address, r->core) != nullptr) ||
                            (r->owns != nullptr && r->owns(r->core, p, &theirs));
        if (has_it && !leads_to_held(gone.upstream, r->address)) {
            return true;
        }
    }
    return false;
}

// With the lock held. The last one that died having \p p in its memory.
const left_range* find_range(const void* p) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    return left_ranges.find([&](const left_range& e) noexcept { return address - e.from < e.bytes && e.known(); });
}

// With the lock held. The block that was live at \p p when its resource died, unless the memory was another's since.
const left_block* find_left(const void* p) noexcept {
    const left_block* const was =
        left_blocks.find([&](const left_block& e) noexcept { return e.what.block.address == p && e.known(); });
    const left_range* const later = was != nullptr ? find_range(p) : nullptr;
    return later != nullptr && later->death > was->death ? nullptr : was;
}

// With the lock held. What a living resource below the dying \p r knows of its block \p was.
left_block left_of(const resource_record& r, const owned_block& was) noexcept {
    left_block b{{&r, r.id, deaths}, was};
    for (const resource_record* below = living.last; r.kind == resource_kind::tracking && below != nullptr;
         below = below->before) {
        owned_block same;
        if (below != &r && below->owns != nullptr && below->owns(below->core, was.block.address, &same) &&
            leads_to_held(r.upstream, below->address)) {
            b.upstream_id = below->id;
            b.upstream_serial = same.block.serial;
            break;
        }
    }
    return b;
}

// With the lock held.
void end_record(resource_record& r, trace_id died) noexcept {
    r.describe_address.store(nullptr, std::memory_order_release);
    r.died = died;
    r.died_thread = os::this_thread().number;
    r.core = nullptr;
    r.owns = nullptr;
    r.visit_live = nullptr;
    r.stats = nullptr;
    r.hold = nullptr;
    r.told.clear();
    unlink_half(living, &r);
    append_half(dead, &r);
    r.alive.store(false, std::memory_order_release);
}

// For signal handlers: calls \p ask(record), which may fault, for each living resource, the one constructed last first,
// and after each \p go_on(record), until that returns false. No lock: the links may change meanwhile, and even form a
// circle.
template <class Ask, class GoOn>
void walk_unlocked(Ask ask, GoOn go_on) noexcept {
    struct position {
        Ask& ask;
        const resource_record* at;
        const resource_record* next;
    };
    position here{ask, nullptr, std::atomic_ref(living.last).load(std::memory_order_acquire)};
    for (std::uint64_t left = last_id; here.next != nullptr && left != 0; --left) {
        here.at = here.next;
        here.next = nullptr;
        os::survives(
            [](void* context) {
                position& mine = *static_cast<position*>(context);
                mine.next = mine.at->before;
                mine.ask(*mine.at);
            },
            &here);
        if (!go_on(*here.at)) {
            return;
        }
    }
}

// Newest first: a resource may call its upstream, which is older, with a lock held.
void collect_locks(os::fork_locks& locks) noexcept {
    locks.take(guard);
    for (const resource_record* r = living.last; r != nullptr; r = r->before) {
        if (r->hold != nullptr) {
            locks.of(r);
            r->hold(r->core, locks);
        }
    }
    locks.of(nullptr);
    if (arena* const shared = process_arena(); shared != nullptr) {
        shared->hold(locks);
    }
}

}  // namespace

resource_record* register_resource(resource_kind kind, const char* type, std::string_view name, const void* address,
                                   const void* upstream, void* core, trace_id born, owns_function owns,
                                   stats_function stats) noexcept {
    os::hold_across_fork(collect_locks);
    const std::scoped_lock hold(guard);
    if (resource_record* const former = find_living(address); former != nullptr) {
        end_record(*former, born);
    }
    resource_record* const r = take_record();
    if (r == nullptr) {
        return nullptr;
    }
    r->id = ++last_id;
    r->address = address;
    r->upstream = upstream;
    r->over_another =
        upstream != nullptr && upstream != std::pmr::new_delete_resource() && find_living(upstream) == nullptr;
    r->core = core;
    r->owns = owns;
    r->visit_live = nullptr;
    r->describe_address.store(nullptr, std::memory_order_relaxed);
    r->stats = stats;
    r->hold = nullptr;
    r->kind = kind;
    r->unchecked = false;
    r->born = born;
    r->died = trace_id::none;
    r->died_thread = 0;
    r->type = type;
    copy_name(*r, name);
    append_all(all, r);
    append_half(living, r);
    r->alive.store(true, std::memory_order_release);
    return r;
}

void set_describe_address(resource_record* r, describe_address_function f) noexcept {
    if (r != nullptr) {
        r->describe_address.store(f, std::memory_order_release);
    }
}

void set_visit_live(resource_record* r, visit_function f) noexcept {
    if (r != nullptr) {
        const std::scoped_lock hold(guard);
        r->visit_live = f;
    }
}

void set_unchecked(resource_record* r, bool unchecked) noexcept {
    if (r != nullptr) {
        const std::scoped_lock hold(guard);
        r->unchecked = unchecked;
    }
}

bool is_unchecked(const void* address) noexcept {
    const std::scoped_lock hold(guard);
    const resource_record* const r = find_living(address);
    return r != nullptr && r->unchecked;
}

void set_fork(resource_record* r, fork_function f) noexcept {
    if (r != nullptr) {
        const std::scoped_lock hold(guard);
        r->hold = f;
    }
}

void unregister_resource(resource_record* r, trace_id died) noexcept {
    if (r == nullptr) {
        return;
    }
    const std::scoped_lock hold(guard);
    os::fork_locks::the_only().forget(r);
    if (r->alive.load(std::memory_order_relaxed)) {
        end_record(*r, died);
    }
}

void change_upstream(resource_record* r, const void* upstream) noexcept {
    if (r != nullptr) {
        const std::scoped_lock hold(guard);
        r->upstream = upstream;
    }
}

bool leads_to(const void* from, const void* address) noexcept {
    const std::scoped_lock hold(guard);
    return leads_to_held(from, address);
}

unsigned quarantines_below(const void* from) noexcept {
    const std::scoped_lock hold(guard);
    unsigned count = 0;
    (void)go_down_held(from, [&](const void*, const resource_record* r) noexcept {
        const bool keeps = r != nullptr && r->owns != nullptr &&
                           (r->kind == resource_kind::general_purpose || r->kind == resource_kind::canary ||
                            r->kind == resource_kind::end_of_page);
        count += keeps ? 1 : 0;
        return false;
    });
    return count;
}

void leave_behind(const resource_record* r, const remains& what) noexcept {
    if (r == nullptr) {
        return;
    }
    const std::scoped_lock hold(guard);
    ++deaths;
    for (std::size_t i = 0; i < what.block_count_; ++i) {
        left_blocks.push(left_of(*r, what.blocks_[i]));
    }
    for (std::size_t i = 0; i < what.range_count_; ++i) {
        left_ranges.push({{r, r->id, deaths}, what.ranges_[i].from, what.ranges_[i].bytes});
    }
}

resource_ref find_former_owner(const void* p, const void* nearest, owned_block* was) noexcept {
    const std::scoped_lock hold(guard);
    if (const left_block* const block = was != nullptr ? find_left(p) : nullptr;
        block != nullptr && !handed_out_anew(p, *block->owner)) {
        *was = block->what;
        was->block.state = block_state::unknown;
        return describe(block->owner);
    }
    const left_range* const range = find_range(p);
    const left_range* const near = nearest != nullptr ? find_range(nearest) : nullptr;
    const bool again = range != nullptr && near != nullptr && near->death == range->death;
    return range != nullptr && !again && !handed_out_anew(p, *range->owner) ? describe(range->owner) : resource_ref{};
}

chain_link link_at(const void* address) noexcept {
    const os::look seen(guard);
    chain_link link;
    link.resource.address = address;
    if (!seen.is_whole()) {
        link.resource = peek_resource(address);
        return link;
    }
    const resource_record* const r = find_living(address);
    if (r != nullptr) {
        link = {.resource = describe(r), .upstream = r->upstream, .stats = r->stats};
    }
    return link;
}

resource_record* find_resource(const void* address) noexcept {
    const std::scoped_lock hold(guard);
    return find_living(address);
}

resource_record* find_dead_resource(const void* address) noexcept {
    const std::scoped_lock hold(guard);
    for (resource_record* r = dead.last; r != nullptr; r = r->before) {
        if (r->address == address) {
            return r;
        }
    }
    return nullptr;
}

resource_ref find_owner(const void* p, const resource_record* self, below upstreams, owned_block* out) noexcept {
    const std::scoped_lock hold(guard);
    // An upstream is older than whoever uses it, so walking back meets the chain below `self` in its order.
    const void* next_below = self != nullptr ? self->upstream : nullptr;
    bool direct = true;
    const resource_record* owner = nullptr;
    for (resource_record* r = living.last; r != nullptr; r = r->before) {
        if (r == self && upstreams == below::stop) {
            break;
        }
        bool ask = r != self && r->owns != nullptr;
        if (next_below != nullptr && r->address == next_below) {
            ask = ask && upstreams == below::ask && (direct || r->kind != resource_kind::page);
            next_below = r->upstream;
            direct = false;
        }
        if (ask && r->owns(r->core, p, out)) {
            owner = r;
            break;
        }
    }
    if (upstreams == below::ask && owner != nullptr) {
        // A block of a tracking resource is one of its upstream's, too, and stays there: that one knows if it is the
        // same still.
        const left_block* const was = find_left(p);
        if (was != nullptr && was->upstream_id == owner->id && was->upstream_serial == out->block.serial) {
            *out = was->what;
            owner = was->owner;
        }
    }
    return describe(owner);
}

address_finding find_in(std::uintptr_t address, const block_info& block, trace_id allocated, trace_id freed) noexcept {
    using what = address_finding::what;
    const auto start = reinterpret_cast<std::uintptr_t>(block.address);
    const std::uintptr_t end = start + block.size;
    address_finding f;
    f.block = block;
    f.allocated = allocated;
    f.freed = freed;
    if (address < start) {
        f.distance = -static_cast<std::ptrdiff_t>(start - address);
        f.is = what::guard_before;
    } else if (address >= end) {
        f.distance = static_cast<std::ptrdiff_t>(address - end);
        f.is = what::guard_after;
    } else {
        f.distance = static_cast<std::ptrdiff_t>(address - start);
        f.is = block.state == block_state::live ? what::live_block : what::freed_block;
    }
    return f;
}

resource_ref find_at(std::uintptr_t address, address_finding* out) noexcept {
    using what = address_finding::what;
    struct {
        const void* at = nullptr;        // the resource asked
        const void* upstream = nullptr;  // its
        address_finding answer;
        bool answered = false;
    } q;
    struct {
        resource_ref who;
        const void* upstream = nullptr;
        address_finding answer;
    } gone;
    resource_ref who;
    bool explained = false;
    walk_unlocked(
        [&](const resource_record& r) noexcept {
            q.at = r.address;
            q.upstream = r.upstream;
            void* const core = r.core;
            const auto describe_it = r.describe_address.load(std::memory_order_acquire);
            q.answered = core != nullptr && describe_it != nullptr && describe_it(core, address, &q.answer);
        },
        [&](const resource_record& r) noexcept {
            const address_finding answer = std::exchange(q.answer, {});
            if (!std::exchange(q.answered, false) || answer.is == what::unknown) {
                return true;
            }
            if (answer.gone_back) {
                if (gone.who.id == 0) {
                    gone = {describe(&r), q.upstream, answer};
                }
                return true;
            }
            explained = answer.is != what::live_block && answer.is != what::never_used;
            if (who.id == 0 || explained) {
                who = describe(&r);
                *out = answer;
            }
            return !explained;
        });
    const bool freed = out->is == what::freed_block || out->is == what::retired_unit;
    const bool confirmed = explained && freed && gone.upstream == q.at;
    if (gone.who.id != 0 && (who.id == 0 || confirmed)) {
        who = gone.who;
        *out = gone.answer;
        out->gone_back = !confirmed;
    }
    return who;
}

resource_ref peek_object_at(std::uintptr_t address) noexcept {
    resource_ref found;
    const auto is_there = [&](const resource_record& r) noexcept {
        return address - reinterpret_cast<std::uintptr_t>(r.address) < object_bytes;
    };
    walk_unlocked([](const resource_record&) noexcept {},
                  [&](const resource_record& r) noexcept {
                      found = is_there(r) ? describe(&r) : found;
                      return found.id == 0;
                  });
    // The last one that died there.
    std::size_t left = dead_records_kept;
    for (const resource_record* r = std::atomic_ref(dead.last).load(std::memory_order_acquire);
         found.id == 0 && r != nullptr && left != 0; r = r->before, --left) {
        found = is_there(*r) ? describe(r) : found;
    }
    return found;
}

resource_ref peek_former_owner(std::uintptr_t address, owned_block* out) noexcept {
    const left_block* const block = left_blocks.find([&](const left_block& e) noexcept {
        return address - reinterpret_cast<std::uintptr_t>(e.what.block.address) < e.what.block.size && e.known();
    });
    const left_range* const range =
        left_ranges.find([&](const left_range& e) noexcept { return address - e.from < e.bytes && e.known(); });
    if (block != nullptr && (range == nullptr || range->death <= block->death)) {
        *out = block->what;
        return describe(block->owner);
    }
    return range != nullptr ? describe(range->owner) : resource_ref{};
}

resource_ref find_covering(const void* address, const own_memory& mine, const resource_record* self,
                           owned_block* out) noexcept {
    address_finding answer;
    bool answered = false;
    resource_ref who;
    walk_unlocked(
        [&](const resource_record& r) noexcept {
            void* const core = r.core;
            const auto describe_it = r.describe_address.load(std::memory_order_acquire);
            answered = &r != self && core != nullptr && describe_it != nullptr &&
                       describe_it(core, reinterpret_cast<std::uintptr_t>(address), &answer);
        },
        [&](const resource_record& r) noexcept {
            const address_finding found = std::exchange(answer, {});
            if (!std::exchange(answered, false) || found.gone_back || found.is != address_finding::what::live_block) {
                return true;
            }
            const auto theirs = reinterpret_cast<std::uintptr_t>(found.block.address);
            const std::uintptr_t end = theirs + found.block.size;
            const bool within = theirs <= mine.from && mine.from + mine.bytes <= end;
            const bool around = mine.block <= theirs && end <= mine.block + mine.block_bytes;
            if (within || around) {
                return true;
            }
            who = describe(&r);
            *out = {.block = found.block, .allocated = found.allocated};
            return false;
        });
    return who;
}

resource_ref peek_resource(const void* address) noexcept {
    resource_ref found;
    found.type = "memory_resource";
    found.address = address;
    const void* at = nullptr;
    walk_unlocked([&](const resource_record& r) noexcept { at = r.address; },
                  [&](const resource_record& r) noexcept {
                      const bool is_it = std::exchange(at, nullptr) == address;
                      found = is_it ? describe(&r) : found;
                      return !is_it;
                  });
    return found;
}

void for_each_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept {
    const std::scoped_lock hold(guard);
    for (resource_record* r = all.first; r != nullptr && visit(*r, context); r = r->newer) {
    }
}

void for_each_living_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept {
    const os::look seen(guard);
    for (resource_record* r = seen.is_whole() ? living.first : nullptr; r != nullptr && visit(*r, context);
         r = r->after) {
    }
}

namespace {

constexpr std::size_t deepest = 32;

bool passes_blocks_on(const resource_record& r) noexcept {
    return r.kind == resource_kind::tracking || r.kind == resource_kind::canary || r.kind == resource_kind::other;
}

/// The same block as the upstream of its owner gave it.
block_below below_of(const owned_block& b) noexcept {
    return {.base = b.base != nullptr ? b.base : b.block.address, .bytes = b.total != 0 ? b.total : b.block.size};
}

/// The resources below one, as far as they are this library's and each block is one of the next.
struct way_down {
    resource_record* steps[deepest];
    std::size_t depth = 0;
    bool leads_elsewhere = false;  ///< the last one's upstream is none of this library's
};

// With the lock held.
way_down way_from(const resource_record& top) noexcept {
    way_down way;
    const void* next = top.upstream;
    for (resource_record* r = find_living(next); r != nullptr && r != &top; r = find_living(next)) {
        if (way.depth == deepest) {
            return way;
        }
        way.steps[way.depth++] = r;
        if (!passes_blocks_on(*r)) {
            return way;
        }
        next = r->upstream;
    }
    // What global new gives is nobody's block of ours, unless global new itself stands on one.
    way.leads_elsewhere = next != nullptr && next != std::pmr::new_delete_resource() && find_living(next) == nullptr;
    return way;
}

/// Effects: calls visit(resource, its block) for the resources on \p way, down to one that has the block not. Returns:
/// whether all had it, and \p visit said true of each; then \p b is the block that the last one's upstream gave. With
/// the lock held.
template <class Visit>
bool follow(const way_down& way, block_below& b, Visit& visit) noexcept {
    for (resource_record* const r : std::span(way.steps, way.depth)) {
        if (r->owns == nullptr) {
            continue;  // it only passes calls on
        }
        owned_block mine;
        if (!r->owns(r->core, b.base, &mine) || !visit(*r, mine)) {
            return false;
        }
        b = below_of(mine);
    }
    return true;
}

/// Returns: a living resource, made before \p above, that has the very block; null if none has. With the lock held.
resource_record* who_has(const block_below& b, const resource_record& above) noexcept {
    for (resource_record* r = living.last; r != nullptr; r = r->before) {
        owned_block theirs;
        if (r->id < above.id && r->owns != nullptr && r->owns(r->core, b.base, &theirs) &&
            theirs.block.address == b.base && theirs.block.size == b.bytes) {
            return r;
        }
    }
    return nullptr;
}

/// Effects: calls visit(resource, its block) for each that has the block \p b of \p top's upstream, until it says
/// false. \p way: down from \p top. With the lock held.
template <class Visit>
void go_down(const resource_record& top, const way_down& way, block_below b, Visit visit) noexcept {
    if (!follow(way, b, visit) || !way.leads_elsewhere) {
        return;
    }
    const resource_record* above = way.depth != 0 ? way.steps[way.depth - 1] : &top;
    for (resource_record* r = who_has(b, *above); r != nullptr; r = who_has(b, *above)) {
        way_down on{.steps = {r}, .depth = 1};
        const bool had_it = follow(on, b, visit);
        on = passes_blocks_on(*r) ? way_from(*r) : way_down{};
        if (!had_it || !follow(on, b, visit) || !on.leads_elsewhere) {
            return;
        }
        above = on.depth != 0 ? on.steps[on.depth - 1] : r;
    }
}

/// True if \p r may have blocks that are those of \p self, further down \p way. With the lock held.
bool may_stand_on(const resource_record& r, const way_down& way, const resource_record& self) noexcept {
    const std::span steps(way.steps, way.depth);
    return &r != &self && (way.leads_elsewhere || std::find(steps.begin(), steps.end(), &self) != steps.end());
}

}  // namespace

void tell_below(const resource_record* self, std::span<const block_below> blocks) noexcept {
    if (self == nullptr) {
        return;
    }
    const std::scoped_lock hold(guard);
    const way_down way = way_from(*self);
    for (const block_below& b : blocks) {
        go_down(*self, way, b, [&](resource_record& r, const owned_block& its) noexcept {
            r.told.add(its.block.serial, its.allocated, self->id);
            return true;
        });
    }
}

bool may_be_stood_on(const resource_record* self) noexcept {
    if (self == nullptr) {
        return false;
    }
    // Each resource asks at its end, so there is time for one look at each of the others.
    bool is_upstream = false;
    bool looks = false;
    const std::scoped_lock hold(guard);
    for (const resource_record* r = living.last; r != nullptr && r->id > self->id; r = r->before) {
        is_upstream = is_upstream || r->upstream == self->address || r->over_another;
        looks = looks || r->visit_live != nullptr;
    }
    return is_upstream && looks;
}

void tell_above(const resource_record* self, const told_leaks& listed, std::uintptr_t from,
                std::uintptr_t to) noexcept {
    if (self == nullptr || listed.size() == 0) {
        return;
    }
    struct above {
        const resource_record& self;
        const told_leaks& listed;
        std::uintptr_t from;
        std::uintptr_t to;
        resource_record* r = nullptr;
        way_down way{};
    } asked{*self, listed, from, to};
    const std::scoped_lock hold(guard);
    for (resource_record* r = living.last; r != nullptr; r = r->before) {
        if (r->visit_live == nullptr) {
            continue;
        }
        asked.r = r;
        asked.way = way_from(*r);
        if (!may_stand_on(*r, asked.way, *self)) {
            continue;
        }
        r->visit_live(
            r->core,
            [](const void* p, void* context) noexcept {
                const above& a = *static_cast<above*>(context);
                const auto address = reinterpret_cast<std::uintptr_t>(p);
                owned_block theirs;
                if (address < a.from || address >= a.to || !a.r->owns(a.r->core, p, &theirs)) {
                    return;
                }
                go_down(*a.r, a.way, below_of(theirs), [&](resource_record& below, const owned_block& its) noexcept {
                    if (&below != &a.self) {
                        return true;
                    }
                    if (a.listed.teller(its.block.serial, its.allocated) != 0) {
                        a.r->told.add(theirs.block.serial, theirs.allocated, a.self.id);
                    }
                    return false;
                });
            },
            &asked);
    }
}

void copy_told(const resource_record* self, told_leaks& out) noexcept {
    if (self != nullptr) {
        const std::scoped_lock hold(guard);
        out.copy(self->told);
    }
}

resource_ref find_by_id(std::uint64_t id) noexcept {
    if (id == 0) {
        return {};
    }
    const std::scoped_lock hold(guard);
    const resource_record* r = all.last;
    while (r != nullptr && r->id != id) {
        r = r->older;
    }
    return describe(r);
}

resource_ref describe(const resource_record* r) noexcept {
    if (r == nullptr) {
        return {};
    }
    return {.id = r->id,
            .name = r->name,
            .type = r->type,
            .address = r->address,
            .alive = r->alive.load(std::memory_order_acquire),
            .born = r->born,
            .died = r->died,
            .died_thread = r->died_thread};
}

}  // namespace pmr_debug::metadata
