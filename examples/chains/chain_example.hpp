#pragma once

// What the chains have in common: everything they say goes to standard output, and nothing ends them.

#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <memory_resource>
#include <string_view>

namespace chains {

inline void print(std::string_view text, void* /*context*/) noexcept {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

inline void show(const std::pmr::memory_resource& top) {
    pmr_debug::write_chain(top, print, nullptr);
    print("\n", nullptr);
}

/// Reports as text on standard output, then goes on.
class report_and_go_on final : public pmr_debug::report_handler {
public:
    report_and_go_on() { pmr_debug::set_default_report_handler(this); }
    ~report_and_go_on() override { pmr_debug::set_default_report_handler(nullptr); }

    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        pmr_debug::write_text(r, {}, print, nullptr);
        print("\n", nullptr);
        return pmr_debug::action::carry_on;
    }
};

}  // namespace chains
