#include "report/copies.hpp"

#include "os/named_page.hpp"
#include "os/spare_stack.hpp"
#include "os/thread.hpp"
#include "stack/depot.hpp"

#include <pmr_debug/policy.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <span>

namespace pmr_debug::detail {

namespace {

// ---- what copies agree upon
// ------------------------------------------------------------------------------------------
//
// Copies may be of different versions and from different compilers. Whatever is changed below needs a new name for the
// page, which is how a copy finds those it understands.

constexpr std::string_view page_name = "pmr_debug_copies_1";

enum class question : std::uint32_t { owner_of_block, what_lies_at };

struct told_trace {
    std::uint32_t depth;
    std::uintptr_t frames[max_frames];
};

struct answer {
    std::uint64_t resource_id;
    const void* resource;
    std::uint32_t alive;
    char name[64];
    char type[64];
    std::uint32_t what;  // address_finding::what
    std::uint32_t gone_back;
    const void* block;
    std::uint64_t size;
    std::uint64_t alignment;
    std::uint64_t serial;
    std::uint32_t state;
    told_trace allocated;
    told_trace freed;
    told_trace born;
    told_trace died;
};

/// Returns: whether it knows. Called in any thread; what_lies_at in signal handlers, too.
using ask_function = bool (*)(question what, std::uintptr_t address, answer* out);

struct entry {
    std::atomic<ask_function> ask;
    std::atomic<std::uint32_t> asking;  ///< calls under way
};

/// What the page holds. Zeroes are an empty one.
struct table {
    entry copies[64];
};

// ---- as one who is asked
// ---------------------------------------------------------------------------------------------

void tell(trace_id id, told_trace& out) noexcept {
    const std::span<const std::uintptr_t> frames = view(id).frames;
    out.depth = static_cast<std::uint32_t>(std::min<std::size_t>(frames.size(), max_frames));
    std::copy_n(frames.begin(), out.depth, out.frames);
}

template <std::size_t N>
void tell(std::string_view text, char (&out)[N]) noexcept {
    const std::size_t n = std::min(text.size(), N - 1);
    if (n != 0) {
        std::memcpy(out, text.data(), n);
    }
    out[n] = '\0';
}

void tell(const block_info& block, answer& out) noexcept {
    out.block = block.address;
    out.size = block.size;
    out.alignment = block.alignment;
    out.serial = block.serial;
    out.state = static_cast<std::uint32_t>(block.state);
}

bool be_asked(question what, std::uintptr_t address, answer* out) {
    std::memset(static_cast<void*>(out), 0, sizeof *out);
    resource_ref who;
    if (what == question::owner_of_block) {
        metadata::owned_block block;
        who = metadata::find_owner(reinterpret_cast<const void*>(address), nullptr, metadata::below::ask, &block);
        tell(block.block, *out);
        tell(block.allocated, out->allocated);
    } else {
        metadata::address_finding found;
        who = metadata::find_at(address, &found);
        out->what = static_cast<std::uint32_t>(found.is);
        out->gone_back = found.gone_back ? 1 : 0;
        tell(found.block, *out);
        tell(found.allocated, out->allocated);
        tell(found.freed, out->freed);
    }
    out->resource_id = who.id;
    out->resource = who.address;
    out->alive = who.alive ? 1 : 0;
    tell(who.name, out->name);
    tell(who.type, out->type);
    tell(who.born, out->born);
    tell(who.died, out->died);
    return who.id != 0;
}

// ---- coming and going
// ------------------------------------------------------------------------------------------------

constinit table* everybody = nullptr;
constinit entry* mine = nullptr;

// When the code is loaded, not at the first report: reports wait for nothing.
[[gnu::constructor(101)]] void join() noexcept {
    everybody = static_cast<table*>(os::named_page(page_name));
    if (everybody == nullptr) {
        return;
    }
    for (entry& e : everybody->copies) {
        ask_function nobody = nullptr;
        if (e.ask.compare_exchange_strong(nobody, be_asked, std::memory_order_acq_rel)) {
            mine = &e;
            return;
        }
    }
}

// Before the code is unloaded.
[[gnu::destructor]] void leave() noexcept {
    if (mine == nullptr) {
        return;
    }
    mine->ask.store(nullptr, std::memory_order_seq_cst);
    // Who asks in a fault may never return.
    for (int waited = 0; waited < 1'000 && mine->asking.load(std::memory_order_seq_cst) != 0; ++waited) {
        os::sleep_ms(1);
    }
    mine = nullptr;
}

// ---- as one who asks
// -------------------------------------------------------------------------------------------------

/// Numbers of other copies' resources begin here. They are not printed.
constexpr std::uint64_t first_foreign = std::uint64_t{1} << 48;

/// A resource of another copy. What was said of it stays, as reports name it when it is gone.
struct foreign {
    std::atomic<bool> written{false};
    std::uint64_t id_there = 0;
    std::size_t copy = 0;
    const void* address = nullptr;
    char name[64]{};
    char type[96]{};
};
constinit foreign known[64]{};
constinit std::atomic<std::size_t> known_count{0};

resource_ref name_it(const answer& a, std::size_t copy) noexcept {
    constexpr std::size_t most = sizeof known / sizeof known[0];
    const std::size_t count = std::min(known_count.load(std::memory_order_acquire), most);
    std::size_t at = most;
    for (std::size_t i = 0; i < count; ++i) {
        const foreign& f = known[i];
        if (f.written.load(std::memory_order_acquire) && f.copy == copy && f.id_there == a.resource_id &&
            f.address == a.resource && std::strcmp(f.name, a.name) == 0) {
            at = i;
        }
    }
    if (at == most) {
        at = known_count.fetch_add(1, std::memory_order_acq_rel);
        if (at < most) {
            foreign& f = known[at];
            f.id_there = a.resource_id;
            f.copy = copy;
            f.address = a.resource;
            tell(std::string_view(a.name), f.name);
            constexpr std::string_view where = " of another copy of pmr_debug";
            tell(std::string_view(a.type), f.type);
            const std::size_t n = std::strlen(f.type);
            std::memcpy(f.type + n, where.data(), where.size());
            f.written.store(true, std::memory_order_release);
        }
    }
    resource_ref r;
    r.id = first_foreign + at;
    r.address = a.resource;
    r.alive = a.alive != 0;
    r.name = at < most ? std::string_view(known[at].name) : std::string_view();
    r.type = at < most ? std::string_view(known[at].type) : std::string_view("resource of another copy of pmr_debug");
    return r;
}

trace_id learn(const told_trace& t) noexcept {
    if (t.depth == 0 || t.depth > max_frames) {
        return trace_id::none;
    }
    const std::uint32_t id = stack::intern(stack::hash_chain(t.frames, t.depth, 0), t.frames, t.depth, 0);
    return id != 0 ? stack::hand_out(id) : trace_id::none;
}

block_info block_of(const answer& a) noexcept {
    block_info b;
    b.address = a.block;
    b.size = a.size;
    b.alignment = a.alignment;
    b.serial = a.serial;
    b.state = a.state == 1 ? block_state::live : (a.state == 2 ? block_state::freed : block_state::unknown);
    return b;
}
static_assert(static_cast<int>(block_state::live) == 1 && static_cast<int>(block_state::freed) == 2);

/// What is asked, and what came of it. An answer takes kilobytes, and what finds it more, so this is done on a stack
/// with room.
struct inquiry {
    question what;
    std::uintptr_t address;
    resource_ref who;
    metadata::address_finding found;
};

void note_answer(inquiry& q, const answer& a, std::size_t copy) noexcept {
    q.who = name_it(a, copy);
    q.who.born = learn(a.born);
    q.who.died = learn(a.died);
    q.found.is = static_cast<metadata::address_finding::what>(a.what);
    q.found.block = block_of(a);
    q.found.allocated = learn(a.allocated);
    q.found.freed = learn(a.freed);
    q.found.gone_back = a.gone_back != 0;
}

/// Asks the other copies, until one knows.
void ask_others(void* argument) {
    inquiry& q = *static_cast<inquiry*>(argument);
    answer a;
    for (std::size_t i = 0; i < sizeof everybody->copies / sizeof everybody->copies[0]; ++i) {
        entry& e = everybody->copies[i];
        if (&e == mine || e.ask.load(std::memory_order_relaxed) == nullptr) {
            continue;
        }
        e.asking.fetch_add(1, std::memory_order_seq_cst);
        const ask_function ask = e.ask.load(std::memory_order_seq_cst);
        const bool knows = ask != nullptr && ask(q.what, q.address, &a);
        e.asking.fetch_sub(1, std::memory_order_seq_cst);
        if (knows) {
            note_answer(q, a, i);
            return;
        }
    }
}

inquiry ask_others(question what, std::uintptr_t address) noexcept {
    inquiry q{what, address, {}, {}};
    if (everybody != nullptr) {
        os::with_room(ask_others, &q);
    }
    return q;
}

}  // namespace

resource_ref find_owner_anywhere(const void* p, const metadata::resource_record* self, metadata::below upstreams,
                                 metadata::owned_block* out) noexcept {
    const resource_ref who = metadata::find_owner(p, self, upstreams, out);
    if (who.id != 0 || upstreams != metadata::below::ask) {
        return who;
    }
    const inquiry q = ask_others(question::owner_of_block, reinterpret_cast<std::uintptr_t>(p));
    if (q.who.id != 0) {
        *out = {.block = q.found.block, .allocated = q.found.allocated};
    }
    return q.who;
}

resource_ref find_at_anywhere(std::uintptr_t address, metadata::address_finding* out) noexcept {
    const resource_ref who = metadata::find_at(address, out);
    if (who.id != 0) {
        return who;
    }
    const inquiry q = ask_others(question::what_lies_at, address);
    if (q.who.id != 0) {
        *out = q.found;
    }
    return q.who;
}

bool is_of_another_copy(const resource_ref& r) noexcept {
    return r.id >= first_foreign;
}

}  // namespace pmr_debug::detail
