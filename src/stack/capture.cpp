#include "stack/capture.hpp"

#include <pmr_debug/policy.hpp>

#include "os/start_code.hpp"
#include "stack/depot.hpp"
#include "stack/ending.hpp"
#include "stack/recent.hpp"
#include "stack/rules.hpp"
#include "stack/unwinder.hpp"

#include <algorithm>
#include <cstddef>

namespace pmr_debug {
namespace stack {

namespace {

trace_id store(const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept {
    const std::uint32_t id = intern(hash_chain(frames, depth, ending), frames, depth, ending);
    if (id == 0) {
        count_lost();
        return trace_id::none;
    }
    return hand_out(id);
}

/// Effects: takes off what comes before main or a thread's function, which tells nobody anything and would be in every
/// trace. Preconditions: the outermost frame was reached.
void drop_start(walk& w) noexcept {
    while (w.depth > 1 && os::is_start_code(w.frames[w.depth - 1]) && !is_end_code(w.frames[w.depth - 1])) {
        --w.depth;
    }
}

}  // namespace

trace_id capture_walking(unsigned frames, std::uintptr_t frame_pointer) noexcept {
    if (frames == 0) {
        return trace_id::none;
    }
    const unsigned most = std::min(frames, max_frames);
    rule_walk w;
    const bool by_rules = walk_by_rules(frame_pointer, most, w);
    if (!by_rules) [[unlikely]] {
        if (is_full()) {
            count_lost();
            return trace_id::none;
        }
        unwind(frame_pointer, max_walk, w);
        w.kept = frames_within(w.frames, w.depth, most);
        count_slow_walk();
    }
    if (w.end == walk_end::outermost) {
        drop_start(w);
    }
    const bool reached = w.depth > w.kept;
    auto ending = reached ? ends_at_depth : (w.end == walk_end::no_rules ? ends_cut_short : std::uint8_t{0});
    if (by_rules && w.unverified) {
        ending |= is_unverified;
    }
    unsigned words = reached ? w.kept : w.depth;
    if (by_rules && w.file_count != 0) {
        std::uintptr_t files = 0;
        for (unsigned i = 0; i < w.file_count; ++i) {
            files |= std::uintptr_t{w.files[i]} << (16 * i);
        }
        w.frames[words++] = files;
        ending |= has_files;
    }
    const trace_id id = store(w.frames, words, ending);
    if (by_rules && id != trace_id::none) {
        if (recent_traces* const recent = ensure_recent(); recent != nullptr) {
            recent->keep(frame_pointer, most, id, w);
        }
    }
    return id;
}

}  // namespace stack

bool trace_by_frame_pointers(const void* begin, const void* end) noexcept {
    return stack::add_frame_pointer_code(reinterpret_cast<std::uintptr_t>(begin),
                                         reinterpret_cast<std::uintptr_t>(end));
}

void forget_frame_pointers(const void* begin) noexcept {
    stack::drop_frame_pointer_code(reinterpret_cast<std::uintptr_t>(begin));
}

trace_id capture_trace(unsigned frames) noexcept {
    return stack::capture_from_caller(frames);
}

}  // namespace pmr_debug
