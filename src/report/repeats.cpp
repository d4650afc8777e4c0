#include "report/repeats.hpp"

#include "os/thread.hpp"

#include <atomic>
#include <cstring>
#include <string_view>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t ways = 4;
constexpr std::size_t sets = repeats_remembered / ways;

constinit repeated_report table[repeats_remembered]{};
constinit std::atomic<std::int64_t> process{0};  // 0: nothing was remembered yet

constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t value) noexcept {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15U;
    return hash ^ (hash >> 32U);
}

std::uint64_t mix(std::uint64_t hash, std::string_view text) noexcept {
    for (const char c : text) {
        hash = mix(hash, static_cast<unsigned char>(c));
    }
    return mix(hash, text.size());
}

std::uint64_t content_of(const report& r) noexcept {
    std::uint64_t hash = mix(mix(0, r.resource.name), r.resource.type);
    hash = mix(hash, r.nearest_only ? 1U : 0U);
    hash = mix(hash, static_cast<std::uint64_t>(r.phase));
    hash = mix(hash, r.listed_blocks != 0 ? 1U : 0U);
    for (const leak_group& group : r.leaks) {
        hash = mix(hash, static_cast<std::uint64_t>(group.allocated));
        if (group.allocated == trace_id::none) {
            hash = mix(hash, group.example_size);
        }
    }
    return hash;
}

std::uint64_t hash_of(const repeated_report& e) noexcept {
    const std::uint64_t start = mix(reinterpret_cast<std::uintptr_t>(e.handler), static_cast<std::uint64_t>(e.kind));
    std::uint64_t hash = mix(start, e.content);
    for (const trace_id id : {e.here, e.allocated, e.freed, e.other}) {
        hash = mix(hash, static_cast<std::uint64_t>(id));
    }
    return hash;
}

}  // namespace

bool repeated_report::same_report(const repeated_report& other_one) const noexcept {
    return handler == other_one.handler && kind == other_one.kind && here == other_one.here &&
           allocated == other_one.allocated && freed == other_one.freed && other == other_one.other &&
           content == other_one.content;
}

bool is_repeated(const void* handler, const output_target& to, report_form form, const report& r,
                 void (*tell)(repeated_report& e) noexcept) noexcept {
    if (r.faulted || r.here == trace_id::none) {
        return false;
    }
    if (const std::int64_t me = os::process_number(); process.load(std::memory_order_relaxed) != me) {
        process.store(me, std::memory_order_relaxed);
        for (repeated_report& e : table) {
            if (e.handler != nullptr) {
                e = {};
            }
        }
    }
    repeated_report asked;
    asked.handler = handler;
    asked.to = to;
    asked.form = form;
    asked.kind = r.kind;
    asked.here = r.here;
    asked.allocated = r.allocated;
    asked.freed = r.freed;
    asked.other = r.other;
    asked.content = content_of(r);
    repeated_report* const set = table + hash_of(asked) % sets * ways;
    repeated_report* best = set;
    for (repeated_report* e = set; e != set + ways; ++e) {
        if (e->same_report(asked)) {
            ++e->times;
            e->blocks += r.leaked_blocks;
            e->bytes += r.leaked_bytes;
            return true;
        }
        const bool better = e->handler == nullptr || e->times < best->times;
        best = best->handler != nullptr && better ? e : best;
    }
    if (best->handler != nullptr && best->times != 0) {
        tell(*best);
    }
    // The type is a static string with a NUL behind it, if it is one of this library's.
    asked.type = r.resource.id != 0 ? r.resource.type.data() : "";
    const std::size_t most = sizeof asked.name - 1;
    const std::size_t kept = r.resource.name.size() < most ? r.resource.name.size() : most;
    if (kept != 0) {
        std::memcpy(asked.name, r.resource.name.data(), kept);
    }
    *best = asked;
    return false;
}

bool are_of_this_process() noexcept {
    return process.load(std::memory_order_relaxed) == os::process_number();
}

std::span<repeated_report> all_repeats() noexcept {
    return table;
}

}  // namespace pmr_debug::detail
