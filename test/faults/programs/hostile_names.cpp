// Names with what a terminal obeys, what is no UTF-8, and what ends a string; and one that is too long. Prints them in
// every form there is: text, tree, chain, log lines; JSON goes to standard error.
#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <string>
#include <string_view>

namespace {

void print(std::string_view text, void*) noexcept {
    std::fwrite(text.data(), 1, text.size(), stdout);
}

class both final : public pmr_debug::report_handler {
public:
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        pmr_debug::write_text(r, {}, print, nullptr);
        return json_.handle(r);
    }

private:
    pmr_debug::json_handler json_{2};
};

}  // namespace

int main() {
    std::string hostile =
        "a\x1b[2J\x1b]0;b\x07\"\\\n\r\t\xff\xc0\xaf\x9b\xc2\x9b\xe2\x80\xae"
        "e";
    hostile.push_back('\0');
    hostile += "behind";
    const std::string longest(100, 'L');
    const std::string umlauts =
        "x\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
        "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
        "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4";
    both handler;
    for (const std::string& name : {hostile, longest, umlauts}) {
        pmr_debug::general_purpose_resource heap({.name = name, .handler = &handler});
        void* const p = heap.allocate(8);
        heap.deallocate(p, 8);
        heap.deallocate(p, 8);
        pmr_debug::tracking_resource scope(&heap, {.name = name, .handler = &handler});
        scope.write_tree(print, nullptr);
        pmr_debug::logging_resource log(&scope, {.name = name, .sink = print});
        log.deallocate(log.allocate(5), 5);
        pmr_debug::write_chain(log, print, nullptr);
    }
}
