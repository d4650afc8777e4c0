#pragma once

// What a trace says, in a form that is easy to test.

#include <pmr_debug/stack_trace.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace trace_test {

struct frame {
    std::uintptr_t address;
    std::string function;
    std::string file;
    unsigned line;
    std::string module;
    std::uintptr_t module_offset;
    bool inlined;
    bool in_library;
};

inline std::vector<frame> frames_of(pmr_debug::trace_id id) {
    std::vector<frame> frames;
    pmr_debug::resolve(
        id,
        [](const pmr_debug::resolved_frame& f, void* context) noexcept {
            static_cast<std::vector<frame>*>(context)->push_back(
                {f.address, f.function, f.file, f.line, f.module, f.module_offset, f.inlined, f.in_library});
        },
        &frames);
    return frames;
}

inline bool is(const frame& f, const std::string& part) {
    return f.function.find(part) != std::string::npos;
}

/// All names, for messages.
inline std::string text(const std::vector<frame>& frames) {
    std::string s;
    for (const frame& f : frames) {
        s += f.function + " at " + f.file + ":" + std::to_string(f.line) + " in " + f.module + "\n";
    }
    return s;
}

/// True if functions with these parts in their names appear in this order, others between them allowed.
inline bool in_order(const std::vector<frame>& frames, const std::vector<std::string>& parts) {
    auto at = frames.begin();
    for (const std::string& part : parts) {
        at = std::find_if(at, frames.end(), [&](const frame& f) { return is(f, part); });
        if (at == frames.end()) {
            return false;
        }
        ++at;
    }
    return true;
}

}  // namespace trace_test
